//! NVIDIA's management library: loaded while the daemon runs, if it is there. The one file that knows it. Reads, and sets nothing.

use std::collections::BTreeMap;
use std::ffi::OsStr;

use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml as Library};
use tierd_cache::vram::audit::Gpu;

use super::{GPUS_MAX, GpuError, Gpus};

/// What the library is called where only the driver is installed; without the number it is part of the development files.
const LIBRARIES: [&str; 2] = ["libnvidia-ml.so.1", "libnvidia-ml.so"];
/// Processes of one GPU that are told of: more than any GPU serves.
const PROCESSES_MAX: usize = 256;

/// The library, opened at the first look.
#[derive(Debug, Default)]
pub struct Nvml {
    library: Option<Library>,
}

impl Gpus for Nvml {
    fn look(&mut self) -> Result<Vec<Gpu>, GpuError> {
        let library = match self.library.take() {
            Some(library) => library,
            None => open()?,
        };
        // After an error the library is closed: what was initialised before a driver was replaced answers no more.
        let gpus = all(&library).map_err(fault)?;
        self.library = Some(library);
        Ok(gpus)
    }
}

fn open() -> Result<Library, GpuError> {
    let mut last = None;
    for name in LIBRARIES {
        match Library::builder().lib_path(OsStr::new(name)).init() {
            Ok(library) => return Ok(library),
            // The first name is the one that an operator looks for.
            Err(error) if last.is_none() || !is_absent(&error) => last = Some(error),
            Err(_) => {}
        }
    }
    Err(last.map_or_else(|| GpuError::NoDriver { detail: LIBRARIES[0].to_owned() }, fault))
}

fn is_absent(error: &NvmlError) -> bool {
    matches!(error, NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound | NvmlError::DriverNotLoaded)
}

fn fault(error: NvmlError) -> GpuError {
    // The system's words alone: what could not be loaded, and why.
    let detail = match &error {
        NvmlError::LibloadingError(error) => error.to_string(),
        error => error.to_string(),
    };
    match error {
        _ if is_absent(&error) => GpuError::NoDriver { detail },
        NvmlError::NoPermission => GpuError::NoPermission { detail },
        NvmlError::GpuLost | NvmlError::ResetRequired => GpuError::Lost { detail },
        _ => GpuError::Failed { detail },
    }
}

fn all(library: &Library) -> Result<Vec<Gpu>, NvmlError> {
    let count = library.device_count()?.min(GPUS_MAX);
    (0..count).map(|index| one(&library.device_by_index(index)?, index)).collect()
}

/// One GPU. Only its memory must be told; what else a card or a container does not tell is left out.
fn one(device: &Device<'_>, index: u32) -> Result<Gpu, NvmlError> {
    let memory = device.memory_info()?;
    Ok(Gpu {
        index,
        name: told(device.name())?.unwrap_or_default(),
        uuid: told(device.uuid())?.unwrap_or_default(),
        total: memory.total,
        used: memory.used,
        utilisation: told(device.utilization_rates())?.map(|rates| rates.gpu),
        processes: processes(device)?,
    })
}

fn processes(device: &Device<'_>) -> Result<Vec<(u32, Option<u64>)>, NvmlError> {
    let compute = told(device.running_compute_processes())?.unwrap_or_default();
    let graphics = told(device.running_graphics_processes())?.unwrap_or_default();
    let mut found: BTreeMap<u32, Option<u64>> = BTreeMap::new();
    for process in compute.into_iter().chain(graphics) {
        let used = match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        };
        // A process that computes and draws is listed twice, each time with all that it uses.
        let bytes = found.entry(process.pid).or_default();
        *bytes = (*bytes).max(used);
    }
    Ok(found.into_iter().take(PROCESSES_MAX).collect())
}

/// None for what this card, driver or user is not told; an error for what ends the look.
fn told<T>(answer: Result<T, NvmlError>) -> Result<Option<T>, NvmlError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error @ (NvmlError::GpuLost | NvmlError::ResetRequired | NvmlError::DriverNotLoaded)) => Err(error),
        Err(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_of_the_library_is_sorted() {
        assert!(matches!(fault(NvmlError::DriverNotLoaded), GpuError::NoDriver { .. }));
        assert!(matches!(fault(NvmlError::LibraryNotFound), GpuError::NoDriver { .. }));
        assert!(matches!(fault(NvmlError::NoPermission), GpuError::NoPermission { .. }));
        assert!(matches!(fault(NvmlError::GpuLost), GpuError::Lost { .. }));
        assert!(matches!(fault(NvmlError::ResetRequired), GpuError::Lost { .. }));
        assert!(matches!(fault(NvmlError::Unknown), GpuError::Failed { .. }));
        assert!(matches!(told::<u32>(Err(NvmlError::NotSupported)), Ok(None)));
        assert!(told::<u32>(Err(NvmlError::GpuLost)).is_err());
    }

    #[test]
    fn a_machine_with_or_without_a_driver_gets_an_answer() {
        match Nvml::default().look() {
            Ok(gpus) => assert!(gpus.iter().all(|gpu| gpu.total >= gpu.used)),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}
