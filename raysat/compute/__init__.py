"""What statistics and steps both stand on: the processor's products, and memory."""
