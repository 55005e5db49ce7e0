"""Certificates by which client, scheduler and workers of one cluster know each other."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ketanet.errors import InputError
from ketanet.files import new_folder

MOST_DAYS = 3650
FILES = ("ca.pem", "cert.pem", "key.pem")


def make_certificates(folder: str | os.PathLike[str], *, days: int = 30) -> Path:
    """Make a private authority and one certificate by it, which client, scheduler and workers share.

    The authority's key is thrown away, so nobody can make another certificate: new ones come with a new authority.

    Parameters
    ----------
    folder : path
        Folder to make; it gets ``ca.pem``, ``cert.pem`` and ``key.pem``, which only its owner can read.
    days : int
        How long they are valid.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    InputError
        The folder is there already, `days` is below one, or the package cryptography is not installed.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID
    except ImportError:
        raise InputError('certificates need the package cryptography: pip install "ketanet[slurm]"') from None
    path = Path(folder)
    if path.exists():
        raise InputError(f"{path} is there already; name a new folder, so that no certificate in use is replaced")
    if not 1 <= days <= MOST_DAYS:
        raise InputError(f"days is {days}; at least 1 is needed, and {MOST_DAYS} are allowed")

    def subject(name: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])

    begin = datetime.now(UTC) - timedelta(hours=2)  # clocks of nodes differ
    end = begin + timedelta(days=days, hours=2)
    authority_key, own_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))

    def builder(name: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject(name))
            .issuer_name(subject("ketanet authority"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
        )

    authority = (
        builder("ketanet authority", authority_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    own = (
        builder("ketanet", own_key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("ketanet")]), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    contents = {
        "ca.pem": authority.public_bytes(pem),
        "cert.pem": own.public_bytes(pem),
        "key.pem": own_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    }
    with new_folder(path) as made:
        made.chmod(0o700)
        for name, content in contents.items():
            file = os.open(made / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(file, "wb") as stream:
                stream.write(content)
    return path
