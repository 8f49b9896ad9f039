// Package nbdtest helps to test NBD servers and what is served over them: a
// raw client that can also send what no decent client would, a backend in
// memory, and one that fails on demand.
package nbdtest
