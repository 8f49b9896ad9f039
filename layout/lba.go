package layout

// The four kinds of block number of a BTT. They are types of their own so that
// the compiler keeps them apart.
type (
	// ExternalLBA counts blocks over the whole device, as its user sees them.
	ExternalLBA uint64
	// PremapLBA counts blocks within one arena, before the map is applied.
	PremapLBA uint32
	// PostmapLBA counts internal blocks within one arena: where data really is.
	PostmapLBA uint32
	// Lane is the index of a flog group and of the free block that it owns.
	Lane uint32
)
