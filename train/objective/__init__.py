"""What is learnt: noise, target and loss."""
