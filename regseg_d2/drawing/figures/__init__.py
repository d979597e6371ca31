"""Figures for publications: functions of plain arrays that return Matplotlib's figures."""
