"""Image features for retrieval: kept on disk by picture and encoder, and ranked exactly."""
