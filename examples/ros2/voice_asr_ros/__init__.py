"""The voice ASR service as a ROS 2 node."""
