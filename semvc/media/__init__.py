"""Video and audio in and out through PyAV."""
