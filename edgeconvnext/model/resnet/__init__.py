"""ResNet-50, ResNeXt-50 and the steps from there to ConvNeXt."""
