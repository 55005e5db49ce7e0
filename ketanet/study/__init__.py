"""A study: one TOML file, run through all stages, resumable."""

from ketanet.study.demo import DemoResult, run_demo
from ketanet.study.run import plan_study, run_study, study_summary
from ketanet.study.settings import CohortSettings, Study, load_study

__all__ = [
    "CohortSettings",
    "DemoResult",
    "Study",
    "load_study",
    "plan_study",
    "run_demo",
    "run_study",
    "study_summary",
]
