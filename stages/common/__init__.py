"""The pipeline's nouns: small modules that the stages share and that know no stage."""
