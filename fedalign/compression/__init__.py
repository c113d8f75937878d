"""How a client's update becomes smaller before it is sent: fewer numbers, and fewer bits for each."""
