"""Results as data frames of pandas."""

from typing import TYPE_CHECKING, Any

from rankwise.errors import ConfigError, suggest
from rankwise.report.table import RUN_COLUMNS
from rankwise.results import ConfigurationResult, Results

if TYPE_CHECKING:
    from pandas import DataFrame

OF = ("configurations", "runs")


def frame(results: Results, of: str = "configurations") -> "DataFrame":
    """Return a row for each configuration, or for each run.

    Args:
        results: The content of `results.json`.
        of: "configurations" (test metric with its interval, and how sure it is that it is within the tolerance), or
            "runs".

    Raises:
        ConfigError: pandas is not installed, or there are no such rows.
    """
    if of not in OF:
        raise ConfigError(f'There are no rows of "{of}"; there are {" and ".join(OF)}.{suggest(of, OF)}')
    try:
        import pandas as pd
    except ModuleNotFoundError as error:
        raise ConfigError("to_pandas needs pandas, which is not installed: pip install pandas.") from error
    if of == "runs":
        return pd.DataFrame([{column: getattr(run, column) for column in RUN_COLUMNS} for run in results.runs])
    return pd.DataFrame([_configuration(c) for c in results.configurations])


def _configuration(c: ConfigurationResult) -> dict[str, Any]:
    low, high = c.interval or (None, None)
    return {
        "name": c.name,
        "method": c.method,
        "r": c.r,
        "trainable_parameters": c.trainable_parameters,
        "relative_parameters": c.relative_parameters,
        "metric": c.mean,
        "low": low,
        "high": high,
        "relative_metric": c.relative_metric,
        "p_within": c.p_within,
        "state": c.state,
        "lr": c.lr,
        "seeds": c.n_seeds,
        "is_answer": c.is_answer,
    }
