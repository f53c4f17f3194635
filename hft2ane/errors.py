"""Every way to fail, on one page. A message says what, where, and what to do now.

Hft2aneError
├── BadInput             the command line or a job folder is not usable as it is
├── ManifestError        one or more problems in manifests/, all of them in the message
├── SourceError          the original cannot be taken
│   ├── ModelNotFound    no such repo, revision or folder
│   │   └── RevisionNotFound the repo is there, that revision of it is not
│   ├── AccessDenied     gated or private, and this token may not read it
│   │   └── TokenRefused the Hub does not accept the token, or not to write there
│   ├── UnsafeFormat     pickle weights or code of its own, which are never loaded
│   └── CorruptFile      a file is not what the Hub or its own header says
├── UnsupportedModel     nothing here reproduces this model
│   ├── UnknownFamily    no hft2ane/families/<model_type>.py
│   ├── UnknownTask      the family has no such task, or the checkpoint names none
│   ├── UnsupportedConfig a config value that the family does not reproduce
│   ├── MissingWeights   the checkpoint has no weights for something the task needs
│   └── TooLarge         its weights are more than the target system takes for the Neural Engine
├── ExportError          the module cannot be written as a Core ML program
├── PackageError         an .mlpackage that cannot be read, or is not what it declares
├── EvaluationError      the evaluator met an op or a value it has no rule for
│   └── NotMeasured      Core ML did not compile, load, run or plan it
│       └── NotInTime    nor did it say why: it did not answer
├── ToolchainMismatch    installed versions are not the locked ones
├── GateFailed           the figures are below the gate, or could not be taken
├── LicenseError         the licence is unknown, changed, or does not allow redistribution
├── SignatureError       a release is not signed, or not by this key, or is not what was signed
├── PublishError         the release could not be published, or is not what was built
├── OverLimit            a conversion took more time or memory than it may
└── Unavailable          the surroundings failed, not the model: try again later
    ├── HubUnavailable   no answer, a server error, or a rate limit that outlasted the retries
    ├── NoSpace          not enough free disk for the next step
    ├── WorkerLost       the machine, or its worker, was lost while it converted
    ├── WorkerMismatch   a worker's environment is not the one that is deployed
    └── NoWorker         no machine began the conversion

And a warning: Truncated    a text was longer than a model takes
"""


class Hft2aneError(Exception):
    """Base of all: one line for people. `exit_code` is what the command ends with."""

    exit_code = 1


class BadInput(Hft2aneError):
    exit_code = 2


class ManifestError(Hft2aneError):
    """`problems` are (place, text) pairs, place being `file:line`."""

    exit_code = 2

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        self.problems = problems
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        super().__init__("\n  ".join([f"{count} in the manifests:", *(f"{at}: {text}" for at, text in problems)]))


class SourceError(Hft2aneError): ...


class ModelNotFound(SourceError): ...


class RevisionNotFound(ModelNotFound): ...


class AccessDenied(SourceError): ...


class TokenRefused(AccessDenied): ...


class UnsafeFormat(SourceError): ...


class CorruptFile(SourceError): ...


class UnsupportedModel(Hft2aneError): ...


class UnknownFamily(UnsupportedModel): ...


class UnknownTask(UnsupportedModel): ...


class UnsupportedConfig(UnsupportedModel): ...


class MissingWeights(UnsupportedModel): ...


class TooLarge(UnsupportedModel): ...


class ExportError(Hft2aneError): ...


class PackageError(Hft2aneError): ...


class EvaluationError(Hft2aneError): ...


class NotMeasured(EvaluationError): ...


class NotInTime(NotMeasured): ...


class ToolchainMismatch(Hft2aneError): ...


class GateFailed(Hft2aneError): ...


class LicenseError(Hft2aneError): ...


class SignatureError(Hft2aneError): ...


class PublishError(Hft2aneError): ...


class OverLimit(Hft2aneError): ...


class Unavailable(Hft2aneError):
    exit_code = 75  # EX_TEMPFAIL


class HubUnavailable(Unavailable): ...


class NoSpace(Unavailable): ...


class WorkerLost(Unavailable): ...


class WorkerMismatch(Unavailable): ...


class NoWorker(Unavailable): ...


class Truncated(UserWarning): ...
