"""Fixed-stepsize SGD: which samples each step sees, what computes the steps, and when the loss is evaluated."""
