"""What can go wrong, as one tree.

::

    FeatpipeError
    ├── SettingsError           a setting has a value it cannot have
    ├── UnknownNameError        no plug-in, model or option of that name
    ├── MissingExtraError       an optional package is not installed
    ├── ImagesError             the image source cannot be used
    │   └── DecodeError         one image's bytes cannot become a picture
    ├── BackboneError           the model cannot be built
    │   ├── WeightsError        its weights cannot be had or do not fit
    │   ├── LayerError          the layer asked for is not in it
    │   └── RuntimeUnavailableError   the runtime asked for cannot run it here
    ├── CacheError              the feature file cannot be used
    │   ├── SpecMismatchError   it was made with other settings
    │   ├── ImagesChangedError  it was made from entirely other images
    │   ├── CacheIncompleteError
    │   ├── CacheDamagedError
    │   └── FeatureValueError   NaN, or too large for the stored type
    ├── DiskSpaceError
    ├── SplitError              rows cannot be divided as asked
    ├── HeadError               the head cannot be trained on these rows
    ├── RouteError              a route of a comparison is not described as it must be
    ├── ResultsError            results of a comparison cannot be read
    └── ClassifierError         the artefact does not match or cannot be read

Every error that a user can cause derives from `FeatpipeError`; its message says what is
wrong, what the difference is, and the ways out. The command line prints the message and
exits with 1.
"""


class FeatpipeError(Exception):
    """Root of every error a user of featpipe can cause."""


class SettingsError(FeatpipeError):
    """A setting has a value it cannot have."""


class UnknownNameError(FeatpipeError):
    """No plug-in, model or option has the name that was asked for."""


class MissingExtraError(FeatpipeError):
    """A feature needs an optional package that is not installed."""


class ImagesError(FeatpipeError):
    """The image source cannot be opened or used."""


class DecodeError(ImagesError):
    """The bytes of one image cannot be turned into a picture."""


class BackboneError(FeatpipeError):
    """The backbone cannot be built."""


class WeightsError(BackboneError):
    """The backbone's weights cannot be had, read, or do not fit it."""


class LayerError(BackboneError):
    """The layer or the pooling that was asked for is not to be had."""


class RuntimeUnavailableError(BackboneError):
    """The runtime, device or precision asked for cannot run this network here."""


class CacheError(FeatpipeError):
    """The feature cache cannot be read or written."""


class SpecMismatchError(CacheError):
    """The cache was extracted with settings other than the ones asked for."""


class ImagesChangedError(CacheError):
    """The cache holds features of none of the images given."""


class CacheIncompleteError(CacheError):
    """Rows are still missing."""


class CacheDamagedError(CacheError):
    """The file is not a feature cache, or its content contradicts itself."""


class FeatureValueError(CacheError):
    """A feature is not finite, or does not fit the stored type."""


class DiskSpaceError(FeatpipeError):
    """The features would not fit on the disk."""


class SplitError(FeatpipeError):
    """The rows cannot be divided into train, validation and test as asked."""


class TooFewError(SplitError):
    """A class has too few images to be divided so."""


class HeadError(FeatpipeError, ValueError):
    """The head cannot be trained on, or applied to, these features."""


class ClassifierError(FeatpipeError):
    """The classifier file cannot be read, or does not match what it is used with."""


class RouteError(FeatpipeError):
    """A route of a comparison is not described as it must be."""


class ResultsError(FeatpipeError):
    """Results of a comparison cannot be read."""
