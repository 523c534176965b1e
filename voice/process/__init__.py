"""What surrounds a process: its parent, its log, its service manager, its signals."""
