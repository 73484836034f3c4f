"""The Saltmere sample domain: invented documents and questions for trying ragx."""
