"""Parts that the networks are built of."""
