"""What networks answer for single images: classes with names and probabilities."""
