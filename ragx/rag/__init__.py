"""The model: p(y|x) = sum_z p(z|x) p(y|x,z)."""
