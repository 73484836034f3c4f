"""Training of question encoder and generator on the marginal likelihood."""
