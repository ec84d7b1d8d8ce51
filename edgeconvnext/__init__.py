"""From a trained ConvNeXt to measured INT8 artifacts."""
