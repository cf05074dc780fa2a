"""What a run tells about itself: figures, pictures and tables."""
