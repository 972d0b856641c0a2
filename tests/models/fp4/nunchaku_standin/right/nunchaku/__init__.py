"""What `import nunchaku` of release 1.2.1 gives, as far as the engine uses it, without kernels."""

from .models import NunchakuFluxTransformer2dModel, NunchakuT5EncoderModel

__all__ = ["NunchakuFluxTransformer2dModel", "NunchakuT5EncoderModel"]
