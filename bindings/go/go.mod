module libsae.org/sae

go 1.24
