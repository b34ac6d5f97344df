//! What a program asked of the device.

/// How often the functions of the driver were called, since the start or since [`reset_counts`](crate::reset_counts).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Kernels launched, without those that graphs launched.
    pub launches: u64,
    /// Matrix products of cuBLASLt, without those in graphs.
    pub products: u64,
    /// Copies, without those in graphs.
    pub copies: u64,
    /// Bytes copied from the host to the device, also by graphs.
    pub bytes_to_device: u64,
    /// Bytes copied from the device to the host, also by graphs.
    pub bytes_to_host: u64,
    /// Fills, without those in graphs.
    pub fills: u64,
    /// Allocations of device memory.
    pub allocations: u64,
    /// Allocations and registrations of page-locked host memory.
    pub host_allocations: u64,
    /// Device memory freed.
    pub frees: u64,
    /// Calls with which the host waits: synchronisations of a stream, an event or the context, and blocking copies.
    pub wait_calls: u64,
    /// Those of them that had something to wait for that the host had not already waited for.
    pub waits: u64,
    /// `cuStreamWaitEvent`.
    pub stream_waits: u64,
    /// `cuEventRecord`.
    pub event_records: u64,
    /// Graphs launched.
    pub graph_launches: u64,
    /// Operations that graphs carried out.
    pub graph_operations: u64,
    /// Streams, events, graphs and modules created.
    pub created: u64,
    /// Algorithms that cuBLASLt was asked for.
    pub heuristics: u64,
    /// Bytes of device memory that are allocated now, with what each allocation is rounded up by.
    pub allocated_bytes: u64,
    /// The most bytes of device memory that were allocated at once.
    pub most_allocated_bytes: u64,
    /// Bytes of page-locked host memory that are allocated now.
    pub host_bytes: u64,
    /// Modules that are loaded now.
    pub modules: u64,
}

/// The number of fields.
pub(crate) const FIELDS: usize = 21;

impl Counts {
    pub(crate) fn to_array(self) -> [u64; FIELDS] {
        [
            self.launches,
            self.products,
            self.copies,
            self.bytes_to_device,
            self.bytes_to_host,
            self.fills,
            self.allocations,
            self.host_allocations,
            self.frees,
            self.wait_calls,
            self.waits,
            self.stream_waits,
            self.event_records,
            self.graph_launches,
            self.graph_operations,
            self.created,
            self.heuristics,
            self.allocated_bytes,
            self.most_allocated_bytes,
            self.host_bytes,
            self.modules,
        ]
    }

    pub(crate) fn from_array(values: [u64; FIELDS]) -> Counts {
        let [
            launches,
            products,
            copies,
            bytes_to_device,
            bytes_to_host,
            fills,
            allocations,
            host_allocations,
            frees,
            wait_calls,
            waits,
            stream_waits,
            event_records,
            graph_launches,
            graph_operations,
            created,
            heuristics,
            allocated_bytes,
            most_allocated_bytes,
            host_bytes,
            modules,
        ] = values;
        Counts {
            launches,
            products,
            copies,
            bytes_to_device,
            bytes_to_host,
            fills,
            allocations,
            host_allocations,
            frees,
            wait_calls,
            waits,
            stream_waits,
            event_records,
            graph_launches,
            graph_operations,
            created,
            heuristics,
            allocated_bytes,
            most_allocated_bytes,
            host_bytes,
            modules,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_survive_the_way_through_an_array() {
        let values: [u64; FIELDS] = std::array::from_fn(|index| index as u64 + 1);
        assert_eq!(Counts::from_array(values).to_array(), values);
    }
}
