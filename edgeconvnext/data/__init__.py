"""Images: sets, decoding, preprocessing, labels."""
