"""What carries messages between the server's app and the nodes."""
