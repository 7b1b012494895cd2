"""Image features for RICES: kept on disk by picture and encoder, and ranked exactly."""
