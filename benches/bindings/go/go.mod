module libsae.org/sae/bench

go 1.24

require libsae.org/sae v0.0.0

replace libsae.org/sae => ../../../bindings/go
