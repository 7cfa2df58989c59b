//! `report.html`: what a run did, in one file without scripts or network, and the comparison of several runs.

pub mod svg;
