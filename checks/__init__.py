"""Gates: values and rules in, a verdict out; pure functions."""
