"""One job in one worker: its data and network, the statistics at initialization, training, and the rows of both."""
