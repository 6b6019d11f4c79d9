"""What is stored: tables, files and checkpoints, and how they survive what happens to machines."""
