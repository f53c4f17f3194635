"""XLM-RoBERTa (Conneau et al. 2019): RoBERTa under another name, with a vocabulary of a hundred languages."""

from hft2ane.families import renamed, roberta

CONFIG = roberta.CONFIG
HEADS = roberta.HEADS
TASKS = renamed(roberta.TASKS, "XLMRoberta")
