//! Makes an image out of a source, and puts it into the store.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use super::blobs::{BlobError, BlobSource};
use super::compression::{self, FileFormat};
use super::contents::{ContentError, ContentStore};
use super::debian;
use super::directory::{DirectoryError, DirectorySource};
use super::file_system::{self, DiskPlan, FileSystemError};
use super::kernel::{self, BootKernel, KernelError, KernelOrigin};
use super::layer::{self, LayerError};
use super::oci::{self, ContainerError, ContainerImage, ImageConfig};
use super::registry::{self, ImageRegistryError};
use super::runtime::{GuestRuntime, RuntimeError};
use super::source::{ImageSource, ImageSourceError};
use super::store::{
    self, ImageDescription, ImageId, ImageStore, ImageStoreError, ImageStoreLock, StagedImage, StoredImage,
};
use super::tree::{ImageTree, NodeKind};
use crate::files::{FileError, Folder};
use crate::host::program::ProgramError;
use crate::world::{ByteSize, ImageName, Interrupt, UserName};

/// The size of a disk if a person gives none: room for projects and containers. It is sparse.
const DEFAULT_SIZE: ByteSize = ByteSize::from_bytes(16 << 30);
/// The smallest disk: the journal and the tables of an ext4 need some MiB.
const SMALLEST: u64 = 64 << 20;
/// What is read of the layers may be this many times what the disk holds, because upper layers replace files of lower ones.
const OVERWRITTEN: u64 = 2;
/// The first number of people in most distributions.
const FIRST_USER: u32 = 1000;

const CONTENTS: &str = "contents";
const WORKPLACE: &str = "work";
const DOWNLOAD: &str = "download";
const UNPACKED: &str = "archive";

/// Why no image was made. The store is as it was.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Store(#[from] ImageStoreError),
    #[error(transparent)]
    Source(#[from] ImageSourceError),
    #[error("{} is a disk in the format {format}; convert it with `qemu-img convert -O raw {} disk.img`, and name disk.img in [[disks]] of the configuration", path.display(), path.display())]
    DiskFormat { path: PathBuf, format: &'static str },
    #[error("{} is a disk as it is: name it in [[disks]] of the configuration, with its kernel in [vm]", .0.display())]
    RawDisk(PathBuf),
    #[error("{} is neither a tar archive nor a container image", .0.display())]
    Unknown(PathBuf),
    #[error("the container image cannot be used")]
    Container(#[from] ContainerError),
    #[error("the container image cannot be read")]
    Blob(#[from] BlobError),
    #[error("the image cannot be had from its registry")]
    Registry(#[from] ImageRegistryError),
    #[error("{} cannot be unpacked", path.display())]
    Archive {
        path: PathBuf,
        #[source]
        source: LayerError,
    },
    #[error("{} has no mark at its end: it was cut short", .0.display())]
    Cut(PathBuf),
    #[error("{} cannot be decompressed", path.display())]
    Decompress {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} cannot be decompressed to the directory of the images", path.display())]
    Spool {
        path: PathBuf,
        #[source]
        source: ContentError,
    },
    #[error("the directory {} cannot be used", path.display())]
    Directory {
        path: PathBuf,
        #[source]
        source: DirectoryError,
    },
    #[error("{} has no root file system in it: neither /bin nor /usr nor /etc", .0)]
    Empty(String),
    #[error(
        "the files of the image have {content}, and its disk of {size} has no room for them: give a larger one with --size"
    )]
    TooSmall { content: ByteSize, size: ByteSize },
    #[error("the disk of an image has at least 64MiB and is a multiple of 1MiB, and {0} is not")]
    Size(ByteSize),
    #[error("no kernel for the image")]
    Kernel(#[from] KernelError),
    #[error("the modules of the kernel cannot be taken into the image")]
    Modules(#[source] DirectoryError),
    #[error("the Debian packages cannot be had")]
    Debian(#[source] ProgramError),
    #[error("what guests need cannot be had")]
    Runtime(#[from] RuntimeError),
    #[error("the disk of the image cannot be made")]
    FileSystem(#[from] FileSystemError),
    #[error("{0:?} gives the image no name: give one with --name")]
    NoName(String),
}

type Result<T, E = ImportError> = std::result::Result<T, E>;

/// What a person asks for.
#[derive(Debug, Clone)]
pub struct ImportRequest {
    /// The source.
    pub source: ImageSource,
    /// The name of the image; without it the name is that of the source.
    pub name: Option<ImageName>,
    /// The size of the disk.
    pub size: Option<ByteSize>,
    /// The kernel, if it is neither to be the image's own nor the newest of this machine.
    pub kernel: Option<PathBuf>,
}

/// What an import came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Imported {
    /// The image was made.
    Made(StoredImage),
    /// An image of the same content is there already.
    Known(StoredImage),
}

/// Makes the image, and puts it into the store.
///
/// # Errors
/// [`ImportError`]; the store is as it was then.
pub async fn import(
    images: &ImageStore,
    request: &ImportRequest,
    tell: &dyn Fn(&str),
    interrupt: &Interrupt,
) -> Result<Imported> {
    let size = request.size.unwrap_or(DEFAULT_SIZE);
    if size.bytes() < SMALLEST || !size.bytes().is_multiple_of(1 << 20) {
        return Err(ImportError::Size(size));
    }
    let name = request.name.clone().or_else(|| request.source.name());
    let name = name.ok_or_else(|| ImportError::NoName(request.source.to_string()))?;
    let lock = images.lock()?;
    // What is missing on this machine is told before anything is downloaded.
    file_system::check_programs()?;
    if let ImageSource::Debian(_) = request.source {
        debian::mmdebstrap().map_err(ImportError::Debian)?;
        // Packages are never installed twice with the same times of their files, so it is a new image.
        images.check_name(&name)?;
    }
    let runtime = GuestRuntime::of_this_machine()?;
    let staged = images.begin(&lock)?;
    let making =
        Making { images, lock: &lock, staged: &staged, request, name, size, runtime, tell, interrupt };
    match making.make().await {
        Ok(Progressed::Ready(description)) => {
            Ok(Imported::Made(images.commit(&lock, staged, &description)?))
        }
        Ok(Progressed::Known(image)) => {
            images.discard(&lock, &staged)?;
            Ok(Imported::Known(image))
        }
        Err(error) => {
            // The reason matters more than what is left, which the next command removes.
            images.discard(&lock, &staged).ok();
            Err(error)
        }
    }
}

/// How far an image was made.
enum Progressed {
    Ready(ImageDescription),
    Known(StoredImage),
}

struct Making<'a> {
    images: &'a ImageStore,
    lock: &'a ImageStoreLock,
    staged: &'a StagedImage,
    request: &'a ImportRequest,
    name: ImageName,
    size: ByteSize,
    runtime: GuestRuntime,
    tell: &'a dyn Fn(&str),
    interrupt: &'a Interrupt,
}

impl Making<'_> {
    async fn make(&self) -> Result<Progressed> {
        let (contents, _) = self.staged.folder().make_folder(CONTENTS)?;
        let mut contents = ContentStore::new(contents, self.size.bytes().saturating_mul(OVERWRITTEN));
        let mut tree = ImageTree::default();
        let config = self.unpack(&mut tree, &mut contents).await?;
        if !["/bin", "/usr", "/etc"].iter().any(|path| tree.look_up(path).is_some()) {
            return Err(ImportError::Empty(self.request.source.to_string()));
        }
        let kernel = self.kernel(&tree, &contents)?;
        let modules = kernel.boot_modules(&tree, &contents)?;
        if let KernelOrigin::Host(_) = kernel.origin {
            self.add_modules(&kernel.release, &mut tree, &mut contents)?;
        }
        let content = content_bytes(&tree);
        let size = self.size;
        // The tables of an ext4 take about a sixtieth of it, and its journal at most a gibibyte.
        if content > size.bytes() - size.bytes() / 20 {
            return Err(ImportError::TooSmall { content: ByteSize::from_bytes(content), size });
        }
        let initramfs = self.runtime.write_initramfs(Vec::new(), &modules)?;
        let id = ImageId::of(&self.identity(&tree, &contents, &kernel, &initramfs));
        let known = self.images.find(id.as_str())?;
        if let Some(image) = known {
            return Ok(Progressed::Known(image));
        }
        self.images.check_name(&self.name)?;
        self.write(StagedImage::kernel(), &kernel.bytes)?;
        self.write(StagedImage::initramfs(), &initramfs)?;
        // Before the contents are moved into the disk.
        let user = login_user(&tree, &contents, &config)?;
        self.make_disk(&tree, &contents, &id).await?;
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Ok(Progressed::Ready(ImageDescription {
            id,
            name: self.name.clone(),
            source: self.request.source.to_string(),
            architecture: "x86_64".to_owned(),
            size,
            content: ByteSize::from_bytes(content),
            kernel: kernel.release,
            kernel_from: match kernel.origin {
                KernelOrigin::Image => "image".to_owned(),
                KernelOrigin::Host(path) => path.display().to_string(),
            },
            user,
            environment: config.environment(),
            created,
        }))
    }

    /// Fills the tree from the source.
    async fn unpack(&self, tree: &mut ImageTree, contents: &mut ContentStore) -> Result<ImageConfig> {
        match &self.request.source {
            ImageSource::Directory(path) => {
                let nothing = |_: &Path| false;
                let source = DirectorySource { root: path, prefix: "", without: &nothing };
                source
                    .add(tree, contents)
                    .map_err(|source| ImportError::Directory { path: path.clone(), source })?;
                Ok(ImageConfig::default())
            }
            ImageSource::Layout(path) => {
                unpack_container(&BlobSource::Directory(path.clone()), tree, contents)
            }
            ImageSource::Archive(path) => self.unpack_archive(path, tree, contents),
            ImageSource::Registry(reference) => {
                let (download, _) = self.staged.folder().make_folder(DOWNLOAD)?;
                let limit = self.size.bytes();
                let container =
                    registry::pull(reference, &download, limit, self.tell, self.interrupt).await?;
                (self.tell)("unpacking");
                let blobs = BlobSource::Directory(download.path().to_owned());
                container.unpack(&blobs, tree, contents)?;
                store::remove_workplace(self.staged, DOWNLOAD)?;
                Ok(container.config)
            }
            ImageSource::Debian(system) => {
                (self.tell)("mmdebstrap fetches and installs the packages, which takes some minutes");
                let archive = self.staged.folder().path_of(UNPACKED);
                system.make(&archive, self.interrupt).await.map_err(ImportError::Debian)?;
                (self.tell)("unpacking");
                let config = self.unpack_archive(&archive, tree, contents)?;
                self.staged.folder().remove_file(UNPACKED)?;
                Ok(config)
            }
        }
    }

    fn unpack_archive(
        &self,
        path: &Path,
        tree: &mut ImageTree,
        contents: &mut ContentStore,
    ) -> Result<ImageConfig> {
        let open = || File::open(path).map_err(FileError::system("open", path));
        let decompress = |source| ImportError::Decompress { path: path.to_owned(), source };
        let (start, _) = compression::peek(open()?).map_err(decompress)?;
        let file = match FileFormat::of(&start) {
            FileFormat::Disk(format) => {
                return Err(ImportError::DiskFormat { path: path.to_owned(), format });
            }
            FileFormat::RawDisk => return Err(ImportError::RawDisk(path.to_owned())),
            FileFormat::Tar => open()?,
            FileFormat::Unknown if is_ext4(&open()?) => return Err(ImportError::RawDisk(path.to_owned())),
            FileFormat::Unknown => return Err(ImportError::Unknown(path.to_owned())),
            _ => self.decompressed(path, open()?)?,
        };
        let blobs = BlobSource::of_archive(file.try_clone().map_err(FileError::system("open", path))?, path)?;
        if oci::is_container(&blobs) {
            return unpack_container(&blobs, tree, contents);
        }
        let mut file = file;
        io::Seek::rewind(&mut file).map_err(FileError::system("read", path))?;
        let marked = layer::apply(io::BufReader::with_capacity(128 << 10, file), tree, contents)
            .map_err(|source| ImportError::Archive { path: path.to_owned(), source })?;
        // The layers of container images have digests, and this has nothing else.
        if !marked {
            return Err(ImportError::Cut(path.to_owned()));
        }
        Ok(ImageConfig::default())
    }

    /// An archive without its compression, in a file beside the contents, because it may have to be read out of order.
    fn decompressed(&self, path: &Path, file: File) -> Result<File> {
        let failed = |source| ImportError::Decompress { path: path.to_owned(), source };
        let mut plain = compression::decompressed(file).map_err(failed)?;
        let target = self.staged.folder().new_file(UNPACKED)?;
        let mut writer = &target;
        let limit = self.size.bytes().saturating_mul(OVERWRITTEN);
        let mut buffer = vec![0; 256 << 10];
        let mut written = 0;
        loop {
            let read = plain.read(&mut buffer).map_err(failed)?;
            if read == 0 {
                break;
            }
            written += read as u64;
            let spool = |source| ImportError::Spool { path: path.to_owned(), source };
            if written > limit {
                return Err(spool(ContentError::TooLarge { limit }));
            }
            writer
                .write_all(&buffer[..read])
                .map_err(FileError::system("write", self.staged.folder().path_of(UNPACKED)))?;
        }
        io::Seek::rewind(&mut writer)
            .map_err(FileError::system("read", self.staged.folder().path_of(UNPACKED)))?;
        self.staged.folder().remove_file(UNPACKED)?;
        let mut start = [0; compression::MAGIC_BYTES];
        let known = std::os::unix::fs::FileExt::read_at(&target, &mut start, 0);
        match known.map(|read| FileFormat::of(&start[..read])) {
            Ok(FileFormat::Tar) => Ok(target),
            _ => Err(ImportError::Unknown(path.to_owned())),
        }
    }

    fn kernel(&self, tree: &ImageTree, contents: &ContentStore) -> Result<BootKernel> {
        if let Some(path) = &self.request.kernel {
            return Ok(BootKernel::of_file(path)?);
        }
        Ok(match BootKernel::of_image(tree, contents)? {
            Some(kernel) => kernel,
            None => BootKernel::of_host()?,
        })
    }

    /// Gives the guest the modules of a kernel of this machine, so that programs in it can load those that the boot does not need.
    fn add_modules(&self, release: &str, tree: &mut ImageTree, contents: &mut ContentStore) -> Result<()> {
        let root = kernel::host_modules(release);
        let prefix = format!("lib/modules/{release}/");
        let source = DirectorySource { root: &root, prefix: &prefix, without: &kernel::is_left_out };
        source.add(tree, contents).map_err(ImportError::Modules)
    }

    /// The hash over all that the image is.
    fn identity(
        &self,
        tree: &ImageTree,
        contents: &ContentStore,
        kernel: &BootKernel,
        initramfs: &[u8],
    ) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        let mut put = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        put(&self.size.bytes().to_le_bytes());
        put(blake3::hash(&kernel.bytes).as_bytes());
        put(blake3::hash(initramfs).as_bytes());
        let nodes = tree.paths().into_iter().map(|(path, id)| (path, tree.node(id)));
        for (path, node) in std::iter::once((b"/".to_vec(), tree.root())).chain(nodes) {
            put(&path);
            let attributes = &node.attributes;
            for number in [attributes.mode, attributes.uid, attributes.gid] {
                put(&number.to_le_bytes());
            }
            put(&attributes.modified.to_le_bytes());
            for (name, value) in &attributes.extended {
                put(name);
                put(value);
            }
            match &node.kind {
                NodeKind::Directory(_) => put(b"directory"),
                NodeKind::Fifo => put(b"fifo"),
                NodeKind::Symlink(target) => put(&[b"link ", &target[..]].concat()),
                NodeKind::File(number, _) => {
                    let hash = contents.hash(*number).unwrap_or_else(|| blake3::hash(b""));
                    put(&[b"file ", &hash.as_bytes()[..]].concat());
                }
            }
        }
        hasher.finalize()
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut file = self.staged.folder().new_file(name)?;
        Ok(file.write_all(bytes).map_err(FileError::system("write", self.staged.folder().path_of(name)))?)
    }

    async fn make_disk(&self, tree: &ImageTree, contents: &ContentStore, id: &ImageId) -> Result<()> {
        (self.tell)("making the disk");
        let (workplace, _): (Folder, _) = self.staged.folder().make_folder(WORKPLACE)?;
        let disk = self.staged.disk();
        let file = self.staged.folder().new_file("disk.img")?;
        file.set_len(self.size.bytes()).map_err(FileError::system("grow", &disk))?;
        let plan = DiskPlan {
            tree,
            contents,
            workplace: workplace.path(),
            disk: &disk,
            id: Uuid::try_parse(id.as_str()).unwrap_or_default(),
        };
        plan.make(self.interrupt).await?;
        for name in [WORKPLACE, CONTENTS] {
            store::remove_workplace(self.staged, name)?;
        }
        let _held: &ImageStoreLock = self.lock;
        Ok(())
    }
}

fn unpack_container(
    blobs: &BlobSource,
    tree: &mut ImageTree,
    contents: &mut ContentStore,
) -> Result<ImageConfig> {
    let container = ContainerImage::read(blobs)?;
    container.unpack(blobs, tree, contents)?;
    Ok(container.config)
}

/// The magic number of ext2, 3 and 4 is in the superblock, at byte 1080.
fn is_ext4(file: &File) -> bool {
    let mut magic = [0; 2];
    std::os::unix::fs::FileExt::read_exact_at(file, &mut magic, 1080).is_ok() && magic == [0x53, 0xef]
}

/// The bytes of all files, in blocks of 4 KiB, with a block for each directory.
fn content_bytes(tree: &ImageTree) -> u64 {
    let mut seen = std::collections::BTreeSet::new();
    let bytes = |(_, id)| {
        let node = tree.node(id);
        match node.kind {
            _ if !seen.insert(id) => 0,
            NodeKind::File(_, size) => size.next_multiple_of(4096),
            NodeKind::Directory(_) => 4096,
            _ => 0,
        }
    };
    tree.paths().into_iter().map(bytes).sum()
}

/// The user that a person logs in as: the one that the image runs its processes as, or the first person of its /etc/passwd.
fn login_user(tree: &ImageTree, contents: &ContentStore, config: &ImageConfig) -> Result<Option<UserName>> {
    let mut text = String::new();
    if let Some(id) = tree.look_up("/etc/passwd")
        && let NodeKind::File(number, size) = tree.node(id).kind
    {
        let mut bytes = Vec::new();
        let read = contents.open(number)?.take(size.min(1 << 20)).read_to_end(&mut bytes);
        read.map_err(FileError::system("read", "/etc/passwd"))?;
        text = String::from_utf8_lossy(&bytes).into_owned();
    }
    let named = |name: &str| text.lines().any(|line| line.split(':').next() == Some(name));
    let numbered = |wanted: &str| {
        let line = text.lines().find(|line| line.split(':').nth(2) == Some(wanted))?;
        line.split(':').next()
    };
    let wished = config.user().and_then(|user| user.split(':').next());
    let user = match wished {
        Some(user) if named(user) => Some(user),
        Some(number) => numbered(number),
        None => None,
    };
    let user = user.filter(|user| *user != "root").or_else(|| numbered(&FIRST_USER.to_string()));
    Ok(user.and_then(|user| user.parse().ok()))
}
