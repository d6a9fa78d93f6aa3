//! The agent as an X client: whether a display answers, and what it shows.
//!
//! An X server that hangs must not hold a thread for ever: each visit has a
//! time limit, after which its socket is shut down under it.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use image::RgbImage;
use tokio::time::timeout;
use x11rb::connection::Connection;
use x11rb::protocol::xproto::{AtomEnum, ConnectionExt, ImageFormat, ImageOrder, Setup, Visualtype};
use x11rb::rust_connection::{DefaultStream, RustConnection};

use super::display::{COOKIE_NAME, cookie_of, socket_of};

/// Longest visit to a display that only asks a question.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest time for taking a picture.
const PICTURE_TIMEOUT: Duration = Duration::from_secs(15);
/// Rows fetched at a time: a strip of the widest screen has 8 MiB.
const STRIP_ROWS: u16 = 256;

/// A display and the file with its cookie.
#[derive(Debug, Clone)]
pub(super) struct Display {
    pub(super) number: u16,
    pub(super) authority: PathBuf,
}

impl Display {
    /// Whether the X server answers.
    pub(super) async fn answers(&self) -> Result<(), String> {
        self.visit(ASK_TIMEOUT, |_, _| Ok(())).await
    }

    /// Whether a window manager says that it manages the screen.
    pub(super) async fn is_managed(&self) -> Result<bool, String> {
        self.visit(ASK_TIMEOUT, |connection, screen| {
            let atom = connection.intern_atom(true, b"_NET_SUPPORTING_WM_CHECK")?.reply()?.atom;
            if atom == x11rb::NONE {
                return Ok(false);
            }
            let root = connection.setup().roots[screen].root;
            Ok(connection.get_property(false, root, atom, AtomEnum::WINDOW, 0, 1)?.reply()?.length > 0)
        })
        .await
    }

    /// What the screen shows.
    pub(super) async fn picture(&self) -> Result<RgbImage, String> {
        self.visit(PICTURE_TIMEOUT, picture).await
    }

    async fn visit<T: Send + 'static>(
        &self,
        limit: Duration,
        work: impl FnOnce(&RustConnection, usize) -> Result<T, Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    ) -> Result<T, String> {
        let display = self.clone();
        let handle: Arc<Mutex<Option<UnixStream>>> = Arc::default();
        let kept = Arc::clone(&handle);
        let mut visit = tokio::task::spawn_blocking(move || {
            let cookie = cookie_of(&std::fs::read(&display.authority)?).ok_or("the X authority file is too short")?;
            let stream = UnixStream::connect(socket_of(display.number))?;
            *kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream.try_clone()?);
            let (stream, _) = DefaultStream::from_unix_stream(stream)?;
            // An X server has at least the screen 0.
            let connection = RustConnection::connect_to_stream_with_auth_info(
                stream,
                0,
                COOKIE_NAME.as_bytes().to_vec(),
                cookie.to_vec(),
            )?;
            work(&connection, 0)
        });
        let Ok(visited) = timeout(limit, &mut visit).await else {
            if let Some(stream) = handle.lock().unwrap_or_else(PoisonError::into_inner).take() {
                // Fails only when the socket is closed already.
                let _ = stream.shutdown(std::net::Shutdown::Both);
            }
            return Err(format!("the X server did not answer within {} s", limit.as_secs()));
        };
        visited.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }
}

fn picture(connection: &RustConnection, screen: usize) -> Result<RgbImage, Box<dyn std::error::Error + Send + Sync>> {
    let setup = connection.setup();
    let root = &setup.roots[screen];
    // The screen may have been resized since the connection was set up.
    let size = connection.get_geometry(root.root)?.reply()?;
    let mut pixels = Vec::with_capacity(usize::from(size.width) * usize::from(size.height) * 3);
    let mut row = 0;
    while row < size.height {
        let rows = STRIP_ROWS.min(size.height - row);
        let top = i16::try_from(row)?;
        let strip =
            connection.get_image(ImageFormat::Z_PIXMAP, root.root, 0, top, size.width, rows, u32::MAX)?.reply()?;
        let layout =
            Layout::of(setup, screen, strip.depth, strip.visual).ok_or("the screen has an unknown pixel format")?;
        layout.append_rgb(&strip.data, size.width, rows, &mut pixels).ok_or("the X server sent too few pixels")?;
        row += rows;
    }
    RgbImage::from_raw(size.width.into(), size.height.into(), pixels)
        .ok_or_else(|| "the X server sent too few pixels".into())
}

/// How pixels lie in memory.
#[derive(Debug, Clone, Copy)]
struct Layout {
    bits_per_pixel: usize,
    scanline_pad_bits: usize,
    high_byte_first: bool,
    /// Bits of red, green and blue.
    masks: [u32; 3],
}

impl Layout {
    fn of(setup: &Setup, screen: usize, depth: u8, visual: u32) -> Option<Self> {
        let format = setup.pixmap_formats.iter().find(|format| format.depth == depth)?;
        let root = setup.roots.get(screen)?;
        let visuals = || root.allowed_depths.iter().flat_map(|depth| &depth.visuals);
        let by_id = |id: u32| visuals().find(move |found: &&Visualtype| found.visual_id == id);
        // The strip of a root window names its visual; some servers name none.
        let visual = by_id(visual).or_else(|| by_id(root.root_visual))?;
        matches!(format.bits_per_pixel, 8 | 16 | 24 | 32).then_some(Self {
            bits_per_pixel: format.bits_per_pixel.into(),
            scanline_pad_bits: format.scanline_pad.into(),
            high_byte_first: setup.image_byte_order == ImageOrder::MSB_FIRST,
            masks: [visual.red_mask, visual.green_mask, visual.blue_mask],
        })
    }

    /// Adds rows as red, green, blue bytes; `None` when `data` is too short.
    fn append_rgb(&self, data: &[u8], width: u16, rows: u16, pixels: &mut Vec<u8>) -> Option<()> {
        let (width, pad) = (usize::from(width), self.scanline_pad_bits.max(8));
        let stride = (width * self.bits_per_pixel).div_ceil(pad) * pad / 8;
        let bytes_per_pixel = self.bits_per_pixel / 8;
        for row in 0..usize::from(rows) {
            let line = data.get(row * stride..)?.get(..width * bytes_per_pixel)?;
            for pixel in line.chunks_exact(bytes_per_pixel) {
                let add = |value: u32, byte: &u8| (value << 8) | u32::from(*byte);
                let value =
                    if self.high_byte_first { pixel.iter().fold(0, add) } else { pixel.iter().rev().fold(0, add) };
                pixels.extend(self.masks.map(|mask| channel(value, mask)));
            }
        }
        Some(())
    }
}

/// The bits under a mask, stretched to a byte.
fn channel(value: u32, mask: u32) -> u8 {
    if mask == 0 {
        return 0;
    }
    let largest = u64::from(mask >> mask.trailing_zeros());
    let level = u64::from((value & mask) >> mask.trailing_zeros());
    u8::try_from(level * 255 / largest).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RGB888: [u32; 3] = [0x00FF_0000, 0x0000_FF00, 0x0000_00FF];

    fn rgb(layout: Layout, data: &[u8], width: u16, rows: u16) -> Option<Vec<u8>> {
        let mut pixels = Vec::new();
        layout.append_rgb(data, width, rows, &mut pixels).map(|()| pixels)
    }

    #[test]
    fn both_byte_orders_give_the_same_colour() {
        let layout = Layout { bits_per_pixel: 32, scanline_pad_bits: 32, high_byte_first: false, masks: RGB888 };
        assert_eq!(rgb(layout, &[3, 2, 1, 0], 1, 1), Some(vec![1, 2, 3]));
        let layout = Layout { high_byte_first: true, ..layout };
        assert_eq!(rgb(layout, &[0, 1, 2, 3], 1, 1), Some(vec![1, 2, 3]));
    }

    #[test]
    fn rows_are_padded_and_few_bits_are_stretched() {
        let masks = [0xF800, 0x07E0, 0x001F];
        let layout = Layout { bits_per_pixel: 16, scanline_pad_bits: 32, high_byte_first: false, masks };
        let data = [0xFF, 0xFF, 9, 9, 0x00, 0xF8, 9, 9];
        assert_eq!(rgb(layout, &data, 1, 2), Some(vec![255, 255, 255, 255, 0, 0]));
        assert_eq!(rgb(layout, &data[..5], 1, 2), None, "too few bytes are no picture");
    }
}
