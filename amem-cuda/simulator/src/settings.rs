//! What a test may choose about the simulated device, through environment variables.

use crate::status::Status;

/// A call that has to fail.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Failure {
    pub(crate) function: String,
    /// How many more calls of the function are needed; 1 is the next one.
    pub(crate) calls: u64,
    pub(crate) status: u32,
}

/// The settings of one simulated machine.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// `AMEM_SIM_SEED`: which order unordered operations run in.
    pub(crate) seed: u64,
    /// `AMEM_SIM_MEMORY`: bytes of device memory.
    pub(crate) memory: usize,
    /// `AMEM_SIM_DEVICES`: how many devices there are. All of them share one memory.
    pub(crate) devices: i32,
    /// `AMEM_SIM_DRIVER`: the CUDA version of the driver, such as 12080.
    pub(crate) driver: i32,
    /// `AMEM_SIM_CUBLAS`: the version of cuBLASLt, such as 120804.
    pub(crate) cublas: usize,
    /// `AMEM_SIM_CAPABILITY`: the compute capability, such as 90.
    pub(crate) capability: i32,
    /// `AMEM_SIM_POOLS`: whether the device has memory pools, that is `cuMemAllocAsync`.
    pub(crate) pools: bool,
    /// `AMEM_SIM_TRACE`: whether every operation is printed when it runs.
    pub(crate) trace: bool,
    /// `AMEM_SIM_FAIL`: calls that fail, as `function:call:code`, separated by commas.
    pub(crate) failures: Vec<Failure>,
}

impl Settings {
    /// Reads the settings with `variable`, and says which of them it could not understand.
    pub(crate) fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Settings, String> {
        fn number<T: std::str::FromStr>(name: &str, text: Option<String>, default: T) -> Result<T, String> {
            match text {
                Some(text) => text.trim().parse().map_err(|_| format!("{name}={text} is not a number")),
                None => Ok(default),
            }
        }
        let number_of = |name: &str, default: i32| number(name, variable(name), default);
        Ok(Settings {
            seed: number("AMEM_SIM_SEED", variable("AMEM_SIM_SEED"), 0)?,
            memory: number("AMEM_SIM_MEMORY", variable("AMEM_SIM_MEMORY"), 16 << 30)?,
            devices: number_of("AMEM_SIM_DEVICES", 1)?,
            driver: number_of("AMEM_SIM_DRIVER", 13000)?,
            cublas: number("AMEM_SIM_CUBLAS", variable("AMEM_SIM_CUBLAS"), 120_804)?,
            capability: number_of("AMEM_SIM_CAPABILITY", 90)?,
            pools: number_of("AMEM_SIM_POOLS", 1)? != 0,
            trace: number_of("AMEM_SIM_TRACE", 0)? != 0,
            failures: failures(&variable("AMEM_SIM_FAIL").unwrap_or_default())?,
        })
    }
}

fn failures(text: &str) -> Result<Vec<Failure>, String> {
    text.split(',').filter(|entry| !entry.is_empty()).map(failure).collect()
}

fn failure(entry: &str) -> Result<Failure, String> {
    let wrong = || format!("AMEM_SIM_FAIL: {entry} is not function:call:code, such as cuMemAlloc_v2:3:2");
    let mut parts = entry.trim().split(':');
    let (Some(function), Some(calls), Some(status), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(wrong());
    };
    let calls: u64 = calls.parse().map_err(|_| wrong())?;
    let status: u32 = status.parse().map_err(|_| wrong())?;
    if function.is_empty() || calls == 0 || status == Status::SUCCESS.0 {
        return Err(wrong());
    }
    Ok(Failure { function: function.to_string(), calls, status })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_failures_is_read_and_nonsense_is_refused() {
        let read = |text: &str| {
            let text = text.to_string();
            Settings::read(move |name| (name == "AMEM_SIM_FAIL").then(|| text.clone())).map(|s| s.failures)
        };
        let first = Failure { function: "cuMemAlloc_v2".to_string(), calls: 3, status: 2 };
        let second = Failure { function: "cuInit".to_string(), calls: 1, status: 100 };
        assert_eq!(read("cuMemAlloc_v2:3:2,cuInit:1:100"), Ok(vec![first, second]));
        assert_eq!(read(""), Ok(vec![]));
        for wrong in ["cuInit", "cuInit:0:1", "cuInit:1:0", "cuInit:x:1", ":1:1", "cuInit:1:1:1"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_setting_that_is_not_a_number_is_refused() {
        let error = Settings::read(|name| (name == "AMEM_SIM_MEMORY").then(|| "1GB".to_string())).unwrap_err();
        assert_eq!(error, "AMEM_SIM_MEMORY=1GB is not a number");
    }
}
