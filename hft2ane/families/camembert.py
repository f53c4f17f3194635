"""CamemBERT (Martin et al. 2019): RoBERTa under another name, in French."""

from hft2ane.families import renamed, roberta

CONFIG = roberta.CONFIG
HEADS = roberta.HEADS
TASKS = renamed(roberta.TASKS, "Camembert")
