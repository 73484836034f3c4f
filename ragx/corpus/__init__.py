"""Documents and questions: files -> records -> passages."""
