"""What each method's representation of a mask could reach at best, measured on annotations alone."""
