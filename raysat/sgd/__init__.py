"""Fixed-stepsize SGD: the samples of each step, the engines that compute the steps, and when the loss is evaluated."""
