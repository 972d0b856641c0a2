"""FLUX in four bits: the format, the fit, the layer, its paths, and two engines that draw with them."""
