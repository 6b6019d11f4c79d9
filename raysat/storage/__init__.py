"""Storage: tables, files and checkpoints, written so that they survive crashes, full disks and outages."""
