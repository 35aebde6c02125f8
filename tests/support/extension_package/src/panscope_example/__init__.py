"""An example of a package that extends Panscope: an architecture, a metric and a format."""
