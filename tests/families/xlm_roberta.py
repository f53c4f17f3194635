from tests.families.roberta import ROW

__all__ = ["ROW"]
