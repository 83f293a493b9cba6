//go:build !sae_collect

package sae

const collects = false

func collect() {}
