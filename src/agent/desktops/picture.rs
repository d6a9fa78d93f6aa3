//! From pixels to the file that the broker asked for.

use std::io::Cursor;

use base64::Engine as _;
use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, ImageFormat as FileFormat, RgbImage};

use super::{Failure, Shot};
use crate::protocol::{Image, ImageFormat};

/// Largest file in bytes: in base64 it stays below 6 MiB, well within a message.
pub const FILE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Quality of JPEG files, of 100.
const JPEG_QUALITY: u8 = 85;

/// Longest side of a picture, whatever was asked for.
const SIDE_MAX: u32 = 4096;

/// Most pixels of the screen that become one: their sum is kept in 32 bits.
const PIXELS_IN_ONE_MAX: u64 = 1 << 22;

/// Scales a screen to fit, never enlarging it, and encodes it. Takes tens of
/// milliseconds of processor time for a large screen, and no more memory than
/// the screen and the picture have.
pub fn encode(screen: RgbImage, shot: Shot, taken_at_ms: u64) -> Result<Image, Failure> {
    let (width, height) = fit(screen.dimensions(), (shot.width_max.min(SIDE_MAX), shot.height_max.min(SIDE_MAX)));
    let scaled = if (width, height) == screen.dimensions() { screen } else { shrink(&screen, width, height) };
    let mut file = Cursor::new(Vec::new());
    let encoded = match shot.format {
        ImageFormat::Png => DynamicImage::ImageRgb8(scaled).write_to(&mut file, FileFormat::Png),
        ImageFormat::Jpeg => scaled.write_with_encoder(JpegEncoder::new_with_quality(&mut file, JPEG_QUALITY)),
    };
    encoded.map_err(|error| Failure(format!("the picture of the screen cannot be encoded: {error}")))?;
    let bytes = file.into_inner();
    if bytes.len() > FILE_BYTES_MAX {
        return Err(Failure(format!(
            "the picture has {} bytes and {FILE_BYTES_MAX} are allowed; ask for a smaller one or for jpeg",
            bytes.len()
        )));
    }
    let data = base64::engine::general_purpose::STANDARD.encode(bytes);
    Ok(Image { format: shot.format, data, taken_at_ms, primary: true })
}

/// A smaller picture: each pixel is the mean of those it stands for.
fn shrink(screen: &RgbImage, width: u32, height: u32) -> RgbImage {
    let pixels = |width: u32, height: u32| u64::from(width) * u64::from(height);
    if pixels(screen.width(), screen.height()) / pixels(width, height) < PIXELS_IN_ONE_MAX {
        return image::imageops::thumbnail(screen, width, height);
    }
    // Nothing could be seen on so few pixels in any case.
    RgbImage::from_pixel(width, height, *screen.get_pixel(0, 0))
}

/// The largest size within the limits that keeps the shape; at least 1 × 1.
fn fit((width, height): (u32, u32), (width_max, height_max): (u32, u32)) -> (u32, u32) {
    let (width_max, height_max) = (width_max.max(1), height_max.max(1));
    if width <= width_max && height <= height_max {
        return (width, height);
    }
    let scale = |side: u32, numerator: u32, denominator: u32| {
        let scaled = u64::from(side) * u64::from(numerator) / u64::from(denominator.max(1));
        u32::try_from(scaled).unwrap_or(u32::MAX).max(1)
    };
    // Compares width_max / width with height_max / height without fractions.
    if u64::from(width_max) * u64::from(height) <= u64::from(height_max) * u64::from(width) {
        (width_max, scale(height, width_max, width))
    } else {
        (scale(width, height_max, height), height_max)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_picture_keeps_its_shape_and_is_never_enlarged() {
        assert_eq!(fit((1280, 800), (160, 100)), (160, 100));
        assert_eq!(fit((1920, 1080), (160, 100)), (160, 90));
        assert_eq!(fit((1080, 1920), (160, 100)), (56, 100));
        assert_eq!(fit((80, 50), (160, 100)), (80, 50));
        assert_eq!(fit((8192, 100), (10, 10)), (10, 1));
        assert_eq!(fit((100, 100), (0, 0)), (1, 1));
    }

    #[test]
    fn both_formats_can_be_read_again() {
        let mut screen = RgbImage::from_pixel(64, 40, image::Rgb([10, 20, 200]));
        screen.put_pixel(3, 3, image::Rgb([255, 0, 0]));
        for (format, file_format) in [(ImageFormat::Png, FileFormat::Png), (ImageFormat::Jpeg, FileFormat::Jpeg)] {
            let shot = Shot { width_max: 32, height_max: 32, format };
            let image = encode(screen.clone(), shot, 5).unwrap();
            let bytes = base64::engine::general_purpose::STANDARD.decode(&image.data).unwrap();
            let read = image::load_from_memory_with_format(&bytes, file_format).unwrap();
            assert_eq!((read.width(), read.height()), (32, 20));
            assert_eq!(image.taken_at_ms, 5);
        }
    }
}
