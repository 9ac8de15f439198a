"""LeRobotDataset v3, the format of the lerobot package: read for training, and written by chunkcast-collect."""
