"""The front end of ``torch.compile``, which takes seconds to import."""

from torch.optim import Optimizer


def leave_out_dynamo() -> None:
    """Keep torch's optimizers from importing ``torch._dynamo``: 3 s of a core in each process that compiles nothing.

    Methods of the optimizers that must not be compiled import it when they are first called, and keep what it makes of
    them as an attribute. That attribute is set here, to the methods as they are.
    """
    for method in vars(Optimizer).values():
        function = getattr(method, "__wrapped__", None)
        if function is not None:
            setattr(function, "__dynamo_disable", function)
