// Package nbdtest helps to test NBD servers and what is served over them: a
// raw client that can also send what no decent client would, a backend in
// memory, one that fails on demand, and [Conformance], which tests any server
// against the protocol document, one case a behaviour.
package nbdtest
