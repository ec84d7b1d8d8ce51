"""ConvNeXt V1 and V2: the network, its presets, layouts of its checkpoints."""
